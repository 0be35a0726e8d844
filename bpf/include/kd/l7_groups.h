/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rules that are too many for one automaton: some of them for each of several.
 *
 * All of these know the syntax, so they have something to do at the same bytes: behind a target, a line, a head. The
 * first one reads as if it were alone (kd/l7_stream.h) and sees what is malformed; the others follow window by window,
 * and only look for a rule that allows. They are left alone as soon as one is found, or none can be any more.
 *
 * Reads what kd/http.h does; writes kd_l7_groups.
 */
#ifndef KD_L7_GROUPS_H
#define KD_L7_GROUPS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/http.h>
#include <kd/l7_peer.h>
#include <kd/l7_reason.h>
#include <kd/maps/l7.h>

static __always_inline __u32 kd_l7_action_of(const struct kd_http_window *window)
{
	return window->cell >> 4 & 0xf;
}

/* A request begins, whose further rules begin with an automaton's. */
KD_FUNCTION int kd_l7_groups_begin(__u64 cookie, __u32 number)
{
	const struct kd_l7_automaton *automaton;
	struct kd_l7_groups *groups;
	struct kd_l7_conn *blank;
	__u32 zero = 0;

	groups = bpf_map_lookup_elem(&kd_l7_groups, &cookie);
	if (!groups) {
		blank = bpf_map_lookup_elem(&kd_l7_blank, &zero); /* longer, and all zero too */
		if (!blank || bpf_map_update_elem(&kd_l7_groups, &cookie, blank, BPF_ANY))
			return KD_HTTP_NO_ROOM;
		groups = bpf_map_lookup_elem(&kd_l7_groups, &cookie);
		if (!groups)
			return KD_HTTP_NO_ROOM;
	}
	for (__u32 i = 0; i < KD_L7_GROUPS - 1; i++) {
		struct kd_l7_stream *group = &groups->group[i];

		group->automaton = 0;
		group->number = 0;
		automaton = number ? bpf_map_lookup_elem(&kd_l7_automata, &number) : NULL;
		if (!automaton)
			continue;
		group->automaton = number;
		group->state = automaton->start[KD_L7_REQUEST];
		number = automaton->more;
	}
	return 0;
}

/* Do what the last byte of a window asks for, as far as that leads to a rule. */
KD_SUBPROGRAM void kd_l7_group_act(struct kd_l7_stream *group, __u32 rules, const struct kd_http_window *window)
{
	const struct kd_l7_automaton *automaton;
	const struct kd_l7_row *row;
	__u32 next = window->cell >> 8;

	switch (kd_l7_action_of(window)) {
	case KD_L7_GO:
	case KD_L7_DIGIT:
		return;
	case KD_L7_TARGET:
		row = kd_http_row(rules, next);
		if (!row)
			break;
		group->target = next;
		group->state = row->next;
		group->number = row->rule;
		if (row->rule || !row->candidates)
			break;
		__builtin_memcpy(group->facts, row->holds, sizeof(group->facts));
		return;
	case KD_L7_LINE:
		automaton = bpf_map_lookup_elem(&kd_l7_automata, &rules);
		if (!automaton || !kd_http_enter(group, automaton->headers, KD_L7_HEADERS))
			break;
		return;
	case KD_L7_HEADER:
		row = kd_http_row(group->automaton, next);
		if (!row)
			break;
		kd_http_learn(group, row);
		group->state = row->next;
		return;
	case KD_L7_HEAD:
		group->number = kd_http_rule(group, rules);
		break;
	}
	group->automaton = 0;
}

/* Read what the first automaton has just read, as one of the others. */
static __always_inline void kd_l7_group_scan(struct kd_l7_stream *group, __u32 rules, struct kd_http_window *window)
{
	for (__u32 i = 0; i < KD_HTTP_WINDOW; i++) {
		if (!group->automaton || window->at >= window->length)
			return;
		window->automaton = group->automaton;
		window->state = group->state;
		if (kd_http_scan(window)) {
			group->automaton = 0;
			return;
		}
		group->state = window->state;
		kd_l7_group_act(group, rules, window);
	}
}

/*
 * Have the other automata read what the first one has read of a window, from a byte on; the number of a rule that they
 * find becomes the request's. Returns why it is denied.
 */
KD_FUNCTION int kd_l7_groups_scan(struct kd_l7_stream *stream, __u64 cookie, __u32 rules, struct kd_http_window *window,
				  __u32 from)
{
	struct kd_l7_groups *groups = bpf_map_lookup_elem(&kd_l7_groups, &cookie);
	__u32 at, cell, length;
	bool left = false;

	if (!stream || !window || !groups)
		return KD_HTTP_NO_RULES;
	at = window->at;
	cell = window->cell;
	length = window->length;
	for (__u32 i = 0; i < KD_L7_GROUPS - 1; i++) {
		struct kd_l7_stream *group = &groups->group[i];
		const struct kd_l7_automaton *automaton = bpf_map_lookup_elem(&kd_l7_automata, &rules);

		if (!automaton || !automaton->more)
			break;
		rules = automaton->more;
		window->at = from;
		window->length = at;
		kd_l7_group_scan(group, rules, window);
		if (group->number)
			stream->number = group->number;
		left = left || group->automaton;
	}
	window->at = at;
	window->cell = cell;
	window->length = length;
	if (kd_l7_action_of(window) == KD_L7_TARGET) {
		const struct kd_l7_row *row = kd_http_row(stream->automaton, cell >> 8);

		if (!row || (!row->rule && !row->candidates && !stream->number && !left))
			return KD_HTTP_NO_RULE;
		left = left && !row->rule;
	}
	if (stream->number || !left)
		stream->flags &= ~KD_L7_GROUPED;
	return 0;
}

#endif /* KD_L7_GROUPS_H */
