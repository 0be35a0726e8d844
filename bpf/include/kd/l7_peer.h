/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which sockets are looked at, and what requests over them have to be.
 *
 * When a connection is established, policies are asked for its ends, as kd/policy.h asks for packets: the rule that
 * lets it begin has the number of what requests have to be. kd_l7_ports has the same for a server's port, whoever
 * its client is. If there is such a number, the socket is put among those whose bytes go through our programs. What a
 * policy says is asked again with the first request after it has changed.
 *
 * A client may have dialled a service: it is asked about the backend, which the flow table knows by then.
 *
 * Reads kd_conntrack, kd_endpoints, kd_ipcache, kd_networks, kd_policies, kd_rules and kd_l7_ports; writes kd_l7_conns,
 * kd_l7_sockets, kd_l7_clients, kd_l7_sock and kd_l7_shut.
 */
#ifndef KD_L7_PEER_H
#define KD_L7_PEER_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/http.h>
#include <kd/l7_close.h>
#include <kd/l7_reason.h>
#include <kd/rules.h>
#include <kd/types.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/http2.h>
#include <kd/maps/l7.h>

#define KD_TCP_CLOSE 7

/*
 * Flags that the kernel keeps of every socket, which no process can see to and nothing else asks for here: a socket has
 * no room for a mark; it is one of those that kd_l7_shut counts.
 */
#define KD_L7_UNMARKED BPF_SOCK_OPS_RTO_CB_FLAG
#define KD_L7_SHUT BPF_SOCK_OPS_RETRANS_CB_FLAG

/* All zero: larger than a stack may be. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, struct kd_l7_conn);
} kd_l7_blank SEC(".maps");

static __always_inline bool kd_l7_is_v4(const struct kd_addr *addr)
{
	return !addr->w[0] && !addr->w[1] && addr->w[2] == bpf_htonl(0xffff);
}

/* What policies say of a peer. */
struct kd_l7_answer {
	__s32 rules; /* number; 0: requests may be anything; less: it may not even connect */
	__u32 revision;
	__u32 identity;
	__u32 audit;
};

/* Ask the policy of one end about the other. */
KD_SUBPROGRAM int kd_l7_ask(__u32 policy, enum kd_toward toward, const struct kd_addr *addr, __be16 port,
			    struct kd_l7_answer *answer)
{
	__u32 index = 2 * policy + toward, number;
	struct kd_policy *found = bpf_map_lookup_elem(&kd_policies, &index);
	struct kd_query query = {};
	struct kd_party *party;
	struct kd_rule *rule;

	answer->rules = 0;
	if (!found || !policy)
		return 0;
	answer->revision = *(const volatile __u32 *)&found->revision; /* before the rules, as in kd_end_ask() */
	answer->audit = found->flags & KD_POLICY_AUDIT;
	party = kd_party_of(&query, addr);
	answer->identity = party ? party->identity : KD_IDENTITY_WORLD;
	number = party ? party->number : kd_l7_is_v4(addr) ? KD_IDENTITY_WORLD_IPV4 : KD_IDENTITY_WORLD_IPV6;
	if (found->flags & KD_POLICY_OPEN)
		return 0;
	rule = kd_rule_of(&query, found, number, port, IPPROTO_TCP);
	if (rule && !rule->deny)
		answer->rules = rule->l7 & KD_NAMES ? 0 : rule->l7; /* names are read as packets pass */
	else if (!answer->audit)
		answer->rules = -1;
	return 0;
}

static __always_inline bool kd_l7_client(const struct kd_l7_conn *conn)
{
	return conn->flags & KD_L7_CLIENT;
}

static __always_inline __u32 kd_l7_epoch(void)
{
	__u32 zero = 0;
	const struct kd_l7_automaton *none = bpf_map_lookup_elem(&kd_l7_automata, &zero);

	return none ? *(const volatile __u32 *)&none->generation : 0;
}

/*
 * Take what policies and ports say for a connection; false: it may not go on. Whether a client may connect at all is asked
 * where its packets are.
 */
static __always_inline bool kd_l7_take(struct kd_l7_conn *conn)
{
	bool client = kd_l7_client(conn);
	struct kd_endpoint *pod = bpf_map_lookup_elem(&kd_endpoints, client ? &conn->way.dst : &conn->way.src);
	struct kd_l7_answer answer = {};
	struct kd_l7_port_key key = {};
	struct kd_l7_port *port;

	if (pod && pod->policy) /* else it keeps one that is gone, and is denied */
		conn->policy = pod->policy;
	conn->epoch = kd_l7_epoch(); /* before it is asked */
	kd_l7_ask(conn->policy, client ? KD_EGRESS : KD_INGRESS, client ? &conn->way.src : &conn->way.dst,
		  conn->way.sport, &answer);
	conn->revision = answer.revision;
	conn->identity = answer.identity;
	conn->rules = answer.rules > 0 ? answer.rules : 0;
	conn->flags &= ~(KD_L7_OBSERVED | KD_L7_AUDITED | KD_L7_ANY);
	if (answer.audit)
		conn->flags |= KD_L7_AUDITED;
	if (answer.rules < 0 && !client)
		return false;
	key.addr = client ? conn->way.dst : conn->way.src;
	key.port = conn->way.sport;
	key.toward = client ? KD_EGRESS : KD_INGRESS;
	port = bpf_map_lookup_elem(&kd_l7_ports, &key);
	if (port && port->flags & KD_L7_OBSERVE)
		conn->flags |= KD_L7_OBSERVED;
	if (port && !conn->rules) {
		conn->rules = port->rules;
		if (port->flags & KD_L7_AUDIT)
			conn->flags |= KD_L7_AUDITED;
	}
	if (!conn->rules)
		conn->flags |= KD_L7_ANY;
	return true;
}

/* Whether policies are others than when they were asked. */
static __always_inline bool kd_l7_outdated(const struct kd_l7_conn *conn)
{
	__u32 index = 2 * conn->policy + (kd_l7_client(conn) ? KD_EGRESS : KD_INGRESS);
	struct kd_policy *policy;

	if (conn->epoch != kd_l7_epoch())
		return true;
	if (!conn->policy)
		return false;
	policy = bpf_map_lookup_elem(&kd_policies, &index);
	return !policy || policy->revision != conn->revision;
}

static __always_inline void kd_l7_ends(struct bpf_sock_ops *ops, struct kd_addr *local, struct kd_addr *remote)
{
	if (ops->family == KD_AF_INET6) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			local->w[i] = ops->local_ip6[i];
			remote->w[i] = ops->remote_ip6[i];
		}
		asm volatile(""); /* or both ways are joined, and read at an address that was worked out */
		return;
	}
	kd_addr_set_v4(local, ops->local_ip4);
	kd_addr_set_v4(remote, ops->remote_ip4);
}

/* Whether anything may ever be asked of a local end. */
static __always_inline bool kd_l7_known(const struct kd_addr *local, __be16 port, bool client, __u32 *policy)
{
	struct kd_l7_port_key key = { .addr = *local, .port = port, .toward = KD_INGRESS };
	struct kd_endpoint *pod = bpf_map_lookup_elem(&kd_endpoints, local);

	*policy = pod ? pod->policy : 0;
	return *policy || (!client && bpf_map_lookup_elem(&kd_l7_ports, &key));
}

/* Whether requests over a connection have to be read, by the policy of its server, or of its client. */
KD_SUBPROGRAM int kd_l7_asked(const struct kd_tuple *way, bool client)
{
	struct kd_l7_port_key key = { .addr = way->src, .port = way->sport, .toward = KD_INGRESS };
	struct kd_l7_answer answer = {};
	struct kd_l7_port *port;
	__u32 policy;

	if (!kd_l7_known(client ? &way->dst : &way->src, way->sport, client, &policy) ||
	    kd_addr_equal(&way->src, &way->dst))
		return false;
	kd_l7_ask(policy, client ? KD_EGRESS : KD_INGRESS, client ? &way->src : &way->dst, way->sport, &answer);
	if (answer.rules)
		return answer.rules > 0 && !answer.audit;
	port = client ? NULL : bpf_map_lookup_elem(&kd_l7_ports, &key);
	return port && !(port->flags & KD_L7_AUDIT);
}

/* The way of a client to what it dialled becomes the way back from its server. */
static __always_inline void kd_l7_to_server(struct kd_tuple *way)
{
	struct kd_ct *ct = kd_ct_find_untold(way);
	struct kd_addr client = way->src;
	__be16 port = way->sport;

	if (ct && !(ct->flags & KD_CT_REPLY)) {
		way->dst = ct->to.dst;
		way->dport = ct->to.dport;
	}
	way->src = way->dst;
	way->sport = way->dport;
	way->dst = client;
	way->dport = port;
}

/*
 * Whether nobody reads a connection though its requests have to be read. One that is older than our programs may be of a
 * server or of a client.
 */
static __always_inline bool kd_l7_missed(struct kd_tuple *way, const struct kd_l7_sock *mark)
{
	if (mark && mark->flags & KD_L7_DIALS)
		return false;
	if (!(mark && mark->flags & KD_L7_CALLER) && kd_l7_asked(way, false))
		return true;
	if (mark && mark->flags == KD_L7_FREE)
		return false;
	way->protocol = IPPROTO_TCP;
	kd_l7_to_server(way);
	return kd_l7_asked(way, true);
}

/* The mark of a socket, made if it has none; where there is no room, which its process can see to, that is noted. */
static __always_inline struct kd_l7_sock *kd_l7_mark(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct kd_l7_sock *mark = bpf_sk_storage_get(&kd_l7_sock, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!mark)
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | KD_L7_UNMARKED);
	return mark;
}

/* A client begins to connect: what it sends before it has can be read by nobody, such as data in a SYN. */
static __always_inline void kd_l7_dial(struct bpf_sock_ops *ops)
{
	struct kd_addr local, remote;
	struct bpf_sock *sk = ops->sk;
	struct kd_l7_sock *mark;
	__u32 policy;

	if (!sk)
		return;
	kd_l7_ends(ops, &local, &remote);
	if (!kd_l7_known(&local, 0, true, &policy) || kd_addr_equal(&local, &remote))
		return;
	mark = kd_l7_mark(ops, sk);
	if (mark)
		mark->flags = KD_L7_DIALS;
}

static __always_inline long kd_l7_put(struct bpf_sock_ops *ops, __u64 cookie, bool client)
{
	if (client)
		return bpf_sock_hash_update(ops, &kd_l7_clients, &cookie, BPF_ANY);
	return bpf_sock_hash_update(ops, &kd_l7_sockets, &cookie, BPF_ANY);
}

static __always_inline __u64 *kd_l7_shut_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&kd_l7_shut, &zero);
}

/*
 * A connection cannot be read: nothing passes, if it has to be. What a client sent with its handshake has passed the
 * guard by now: it is denied as a server's socket that nothing is known of.
 */
static __always_inline void kd_l7_unread(struct bpf_sock_ops *ops, struct kd_l7_sock *mark, const struct kd_tuple *way,
					 __u64 cookie, bool client)
{
	__u64 *shut = kd_l7_shut_count();

	kd_l7_count(KD_HTTP_NO_ROOM);
	if (!kd_l7_asked(way, client)) {
		if (mark)
			mark->flags = KD_L7_FREE | (client ? KD_L7_CALLER : 0);
		return;
	}
	if (client || !shut || kd_l7_put(ops, cookie, false))
		return;
	__sync_fetch_and_add(shut, 1);
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | KD_L7_SHUT | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* A connection is established: have its bytes looked at, if they have to be. */
static __always_inline void kd_l7_enrol(struct bpf_sock_ops *ops, bool client)
{
	struct kd_tuple way = { .protocol = IPPROTO_TCP };
	struct kd_l7_conn *blank, *conn;
	struct kd_l7_sock *mark;
	struct bpf_sock *sk = ops->sk;
	__u32 policy, zero = 0;
	__u64 cookie;

	if (!sk)
		return;
	kd_l7_ends(ops, &way.src, &way.dst);
	way.sport = bpf_htons(ops->local_port);
	way.dport = bpf_htons(bpf_ntohl(ops->remote_port));
	if (!kd_l7_known(&way.src, way.sport, client, &policy) || kd_addr_equal(&way.src, &way.dst)) {
		mark = bpf_sk_storage_get(&kd_l7_sock, sk, NULL, 0);
		if (mark) /* as it dialled there was a policy */
			mark->flags = KD_L7_FREE | KD_L7_CALLER;
		return;
	}
	if (client)
		kd_l7_to_server(&way);
	mark = kd_l7_mark(ops, sk);
	if (mark)
		mark->flags = 0;
	blank = bpf_map_lookup_elem(&kd_l7_blank, &zero);
	cookie = bpf_get_socket_cookie(ops);
	conn = NULL;
	if (mark && blank && !bpf_map_update_elem(&kd_l7_conns, &cookie, blank, BPF_NOEXIST))
		conn = bpf_map_lookup_elem(&kd_l7_conns, &cookie);
	if (!conn) {
		kd_l7_unread(ops, mark, &way, cookie, client);
		return;
	}
	mark->cookie = cookie;
	mark->end = ops->snd_una;
	conn->way = way;
	conn->netns = bpf_get_netns_cookie(ops);
	conn->policy = policy;
	conn->flags = client ? KD_L7_CLIENT : 0;
	if (bpf_map_lookup_elem(&kd_l7_closers, &conn->netns))
		conn->flags |= KD_L7_CLOSES;
	if (kd_l7_take(conn) && conn->flags & KD_L7_ANY) {
		mark->flags = KD_L7_FREE | (client ? KD_L7_CALLER : 0);
		bpf_map_delete_elem(&kd_l7_conns, &cookie);
		return;
	}
	kd_l7_close_forget(&conn->way);
	if (bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG) ||
	    kd_l7_put(ops, cookie, client)) {
		bpf_map_delete_elem(&kd_l7_conns, &cookie);
		kd_l7_unread(ops, mark, &way, cookie, client);
		return;
	}
	mark->flags = KD_L7_READ | (client ? KD_L7_CALLER : 0);
	kd_l7_count(KD_HTTP_CONNECTION);
}

static __always_inline void kd_l7_closed(struct bpf_sock_ops *ops)
{
	__u64 cookie = bpf_get_socket_cookie(ops), *shut;

	if (ops->args[1] != KD_TCP_CLOSE)
		return;
	shut = ops->bpf_sock_ops_cb_flags & KD_L7_SHUT ? kd_l7_shut_count() : NULL;
	if (shut) {
		__sync_fetch_and_add(shut, -1);
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~KD_L7_SHUT);
	}
	bpf_map_delete_elem(&kd_l7_conns, &cookie);
	bpf_map_delete_elem(&kd_l7_http2, &cookie);
	bpf_map_delete_elem(&kd_l7_groups, &cookie);
}

#endif /* KD_L7_PEER_H */
