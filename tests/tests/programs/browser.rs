//! A browser, with its own walls around each page.

use crate::support::Guests;

const PAGE: &str = r#"<!doctype html><title>page</title><p id=p>before</p><script>
const primes = []; for (let n = 2; primes.length < 1000; n++) if (primes.every(p => n % p)) primes.push(n);
document.getElementById("p").textContent = "prime " + primes.at(-1);
</script>"#;

#[test]
#[ignore = "cargo xtask programs"]
fn chromium_runs_a_page_and_takes_a_picture() {
    let mut guests = Guests::of("browser");
    guests.start("box", 2048, &["--network", "isolated", "--cpus", "2"]);
    guests.sh("box", &format!("useradd --create-home web; cat > /home/web/page.html <<'END'\n{PAGE}\nEND"));
    let browse = |what: &str| {
        let chromium = "chromium --headless --disable-gpu --virtual-time-budget=60000";
        guests.sh(
            "box",
            &format!(
                "cd /home/web; su web -c '{chromium} {what} file:///home/web/page.html 2> log' || cat log"
            ),
        )
    };
    let dom = browse("--dump-dom");
    assert!(dom.contains("prime 7919"), "{dom}");
    browse("--screenshot=/home/web/page.png");
    assert_eq!(guests.sh("box", "head -c 4 /home/web/page.png | tail -c 3"), "PNG");
    guests.end();
}
