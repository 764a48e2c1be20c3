//! A container engine in a guest.

use crate::support::Guests;

const SERVE: &str = "mkdir -p /srv/root/bin; cp /bin/busybox /srv/root/bin; \
    setsid dockerd > /var/log/dockerd.log 2>&1 < /dev/null &";

/// An image from files, one built on it, and a container of that with a published port.
const DOCKER: &str = r#"tar -C /srv/root -c . | docker import - zoo:1 > /dev/null
mkdir /tmp/web; printf 'FROM zoo:1\nRUN ["/bin/busybox", "sh", "-c", "echo built > /index.html"]\nCMD ["/bin/busybox", "httpd", "-f", "-p", "80"]\n' > /tmp/web/Dockerfile
docker build --quiet --tag web:1 /tmp/web > /dev/null
docker run --detach --publish 8080:80 --memory 64m --name web web:1 > /dev/null
for _ in $(seq 100); do curl -sf http://127.0.0.1:8080/ && break; sleep 0.2; done
docker exec web /bin/busybox hostname | wc -c
docker info --format '{{.Driver}} {{.CgroupVersion}} {{.ContainersRunning}}' 2> /dev/null
docker stop --time 1 web; docker run --rm zoo:1 /bin/busybox echo from a container"#;

#[test]
#[ignore = "cargo xtask programs"]
fn docker_builds_and_runs_containers() {
    let mut guests = Guests::of("engines");
    guests.start("box", 1024, &["--network", "isolated"]);
    guests.sh("box", SERVE);
    guests.wait_for("box", "the engine", "docker info");
    assert_eq!(guests.sh("box", DOCKER), "built\n13\noverlay2 2 1\nweb\nfrom a container\n");
    guests.end();
}
