// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs of pods and uplinks, at XDP too, once more, word for word, but telling each step (kd/trace.h). They are never
 * attached, only run on packets that somebody asks about (k8sdatapath/datapath/explainer.py).
 */
#define KD_TRACING

#define _license license_of_pod
#include "pod.bpf.c"
#undef _license
#define _license license_of_host
#include "host.bpf.c"
#undef _license
#define _license license_of_xdp
#include "xdp.bpf.c"
#undef _license

KD_CONFIG(__u64, node_netns, "cookie of the node's own network namespace; 0: none is") = 0;

/*
 * connect() and sendmsg() of a process, as kd/socket.h decides it: these hooks cannot be run by themselves. The packet
 * says what is dialled, and cb[0] and cb[1] are the cookie of the process's network namespace.
 */
static __always_inline int kd_explain_socket(struct __sk_buff *skb, const struct kd_tuple *dialled)
{
	struct kd_frontend *frontend = kd_frontend_find(&dialled->dst, dialled->dport, dialled->protocol);
	struct kd_affinity_key client = { .netns = 1 };
	struct kd_backend *backend = NULL;
	__u32 cookie[2] = { skb->cb[0], skb->cb[1] };
	struct kd_tuple to = *dialled;
	__u64 netns;
	int result;

	__builtin_memcpy(&netns, cookie, sizeof(netns));
	if (frontend && frontend->flags & KD_FRONTEND_LOOPBACK && !(node_netns && netns == node_netns))
		frontend = NULL;
	if (!frontend) {
		KD_TRACE(KD_STEP_NO_FRONTEND, 0, 0, dialled);
		return kd_frontend_missing(&dialled->dst);
	}
	KD_TRACE(KD_STEP_FRONTEND, frontend->kind | frontend->selection << 8, frontend->service, dialled);
	if (kd_has_sources(frontend)) /* for packets to settle */
		return KD_PASS;
	KD_TRACE(KD_STEP_SCOPE, kd_scope_of(frontend, false), false, NULL);
	__builtin_memcpy(&client.client, &netns, sizeof(netns));
	result = kd_backend_choose(frontend, kd_scope_of(frontend, false), &client, bpf_get_prandom_u32(), &backend);
	if (result != KD_CONTINUE)
		return result;
	to.dst = backend->addr;
	to.dport = backend->port;
	KD_TRACE(KD_STEP_BACKEND, 0, backend->id, &to);
	return KD_AT_SOCKET;
}

SEC("tc")
int from_socket(struct __sk_buff *skb)
{
	struct kd_pkt pkt = {};
	int result = kd_parse(skb, &pkt);

	if (result == KD_CONTINUE) {
		KD_TRACE(KD_STEP_PACKET, 0, false, &pkt.tuple);
		result = kd_explain_socket(skb, &pkt.tuple);
	}
	return kd_finish(skb, &pkt, result, KD_CONNECT);
}
