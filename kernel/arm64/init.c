/*
 * First process of a guest kernel for 64-bit ARM that is tried: looks for what microagent needs of it, says what is
 * there, and turns the machine off. `cargo xtask kernel-arm64` reads what it says.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

static int found, wanted;

static void report(const char *what, int there)
{
	wanted++;
	found += !!there;
	printf("arm64: %s: %s\n", there ? "found" : "missing", what);
}

/* Whether a file in a directory of directories has this text: the name of a port, say. */
static int any_says(const char *dir, const char *file, const char *text)
{
	DIR *entries = opendir(dir);
	struct dirent *entry;
	int says = 0;

	while (entries && !says && (entry = readdir(entries))) {
		char path[512], line[256] = "";
		int fd;

		snprintf(path, sizeof(path), "%s/%s/%s", dir, entry->d_name, file);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		if (read(fd, line, sizeof(line) - 1) > 0)
			says = strstr(line, text) != NULL;
		close(fd);
	}
	if (entries)
		closedir(entries);
	return says;
}

static int writes(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), done;

	done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	if (fd >= 0)
		close(fd);
	return done;
}

int main(void)
{
	struct utsname name = { 0 };
	char marker[16] = "";
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/disk", 0755);
	report("devtmpfs", !mount("dev", "/dev", "devtmpfs", 0, NULL));
	report("proc", !mount("proc", "/proc", "proc", 0, NULL));
	report("sysfs", !mount("sys", "/sys", "sysfs", 0, NULL));
	report("two processors", sysconf(_SC_NPROCESSORS_ONLN) == 2);
	report("the control port", any_says("/sys/class/virtio-ports", "name", "microagent.control"));
	report("random numbers", any_says("/sys/class/misc", "rng_available", "virtio_rng"));
	report("a network device", any_says("/sys/bus/virtio/devices", "device", "0x0001"));
	report("a balloon", any_says("/sys/bus/virtio/devices", "device", "0x0005"));
	/* As the agent does it: nothing is scanned at boot. */
	report("a scan for disks", writes("/sys/class/scsi_host/host0/scan", "0 0 0"));
	for (int tries = 0; tries < 500 && access("/dev/sda", F_OK); tries++)
		usleep(10000);
	report("an ext4 disk", !mount("/dev/sda", "/disk", "ext4", 0, NULL));
	fd = open("/disk/marker", O_RDONLY);
	report("its file", fd >= 0 && read(fd, marker, 7) == 7 && !strcmp(marker, "content"));
	report("overlayfs", !mount("none", "/disk/merged", "overlay", 0,
				   "lowerdir=/disk/lower,upperdir=/disk/upper,workdir=/disk/work"));
	report("cgroup v2", !mkdir("/disk/cgroup", 0755) && !mount("none", "/disk/cgroup", "cgroup2", 0, NULL));
	uname(&name);
	printf("arm64: %s %s: %d of %d\n", name.release, name.machine, found, wanted);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
