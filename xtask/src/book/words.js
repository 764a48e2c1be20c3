// A browser breaks a line behind a hyphen, also inside of an option. Short words of code stay whole.
(() => {
    const LONGEST = 40;
    for (const code of document.querySelectorAll(":not(pre) > code")) {
        if (code.childElementCount > 0) continue;
        const pieces = code.textContent.split(/(\s+)/).map((word) => {
            if (!word.includes("-") || word.length > LONGEST) return document.createTextNode(word);
            const whole = document.createElement("span");
            whole.style.whiteSpace = "nowrap";
            whole.textContent = word;
            return whole;
        });
        code.replaceChildren(...pieces);
    }
})();
