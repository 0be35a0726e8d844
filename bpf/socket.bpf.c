// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The sockets of the processes in a cgroup.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/socket.h>

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return kd_finish_socket(ctx, false, kd_sock_connect(ctx, false), KD_CONNECT);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return kd_finish_socket(ctx, true, kd_sock_connect(ctx, true), KD_CONNECT);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return kd_finish_socket(ctx, false, kd_sock_sendmsg(ctx, false), KD_SENDMSG);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return kd_finish_socket(ctx, true, kd_sock_sendmsg(ctx, true), KD_SENDMSG);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	kd_sock_translate_back(ctx, false, true);
	return 1;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	kd_sock_translate_back(ctx, true, true);
	return 1;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	kd_sock_translate_back(ctx, false, false);
	return 1;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	kd_sock_translate_back(ctx, true, false);
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return kd_finish_bind(ctx, false, kd_sock_bind(ctx, false));
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return kd_finish_bind(ctx, true, kd_sock_bind(ctx, true));
}
