// A browser breaks a line behind a hyphen, also inside of an option. Options, and short words of code, stay whole.
(() => {
    const OF_CODE = /((?<!\S)(?=\S*-)\S{1,40}(?!\S))/;
    const OF_PROSE = /(--[a-z][\w-]*)/;
    const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    const nodes = [];
    while (texts.nextNode()) nodes.push(texts.currentNode);
    for (const node of nodes.filter((node) => !node.parentElement.closest("pre, script"))) {
        const pieces = node.textContent.split(node.parentElement.closest("code") ? OF_CODE : OF_PROSE);
        if (pieces.length === 1) continue;
        // Every second piece is one that the pattern has found.
        node.replaceWith(...pieces.map((text, at) => {
            if (at % 2 === 0) return text;
            const whole = document.createElement("span");
            whole.style.whiteSpace = "nowrap";
            whole.textContent = text;
            return whole;
        }));
    }
})();
