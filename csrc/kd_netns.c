/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network namespaces. A namespace belongs to a thread, and a thread that has entered one cannot be trusted
 * with anything else. So whatever has to be done inside runs in a pthread of its own, which then dies;
 * kd_netns_enter() alone moves its caller.
 */
#include "kd.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* Linux 5.14 */
#endif

struct job {
	void *(*run)(void *job);
	const char *path;
	uint64_t cookie;
	int fd;
	int result;
};

/* Signals stay with the threads that Python knows of. */
static int run_in_thread(struct job *job)
{
	sigset_t all, before;
	pthread_t thread;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&thread, NULL, job->run, job);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err)
		return -err;
	pthread_join(thread, NULL);
	return job->result;
}

/*
 * As `ip netns add` does: names in a mount of their own, shared, so that a name removed here is gone in every
 * mount namespace that was copied from ours (`ip netns exec` makes such copies).
 */
static int share(const char *dir)
{
	int lock, err = 0;

	if (mkdir(dir, 0755) && errno != EEXIST)
		return -errno;
	lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lock < 0)
		return -errno;
	if (flock(lock, LOCK_EX))
		err = -errno;
	else if (mount("", dir, "none", MS_SHARED | MS_REC, NULL) &&
		 (errno != EINVAL || mount(dir, dir, "none", MS_BIND | MS_REC, NULL) ||
		  mount("", dir, "none", MS_SHARED | MS_REC, NULL)))
		err = -errno;
	close(lock);
	return err;
}

static void *create(void *arg)
{
	struct job *job = arg;

	if (unshare(CLONE_NEWNET) || mount("/proc/thread-self/ns/net", job->path, "none", MS_BIND, NULL))
		job->result = -errno;
	return NULL;
}

int kd_netns_create(const char *dir, const char *path)
{
	struct job job = { .run = create, .path = path };
	int fd, err;

	err = share(dir);
	if (err)
		return err;
	fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	close(fd);
	err = run_in_thread(&job);
	if (err)
		unlink(path);
	return err;
}

/* What lives inside keeps the namespace; only its name goes. */
int kd_netns_remove(const char *path)
{
	if (umount2(path, MNT_DETACH) && errno != EINVAL)
		return -errno;
	return unlink(path) ? -errno : 0;
}

int kd_netns_enter(int fd)
{
	return setns(fd, CLONE_NEWNET) ? -errno : 0;
}

static void *cookie_of(void *arg)
{
	struct job *job = arg;
	socklen_t size = sizeof(job->cookie);
	int fd = -1;

	if (setns(job->fd, CLONE_NEWNET) || (fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &job->cookie, &size))
		job->result = -errno;
	if (fd >= 0)
		close(fd);
	return NULL;
}

int kd_netns_cookie(int fd, uint64_t *cookie)
{
	struct job job = { .run = cookie_of, .fd = fd };
	int err = run_in_thread(&job);

	*cookie = job.cookie;
	return err;
}
