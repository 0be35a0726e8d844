/* SPDX-License-Identifier: Apache-2.0 */
struct kd_member {
	uint64_t hash; /* of what the backend is, not of its number: the same on every node */
	uint32_t value; /* what the table shall hold for it */
	uint32_t weight;
};
int kd_maglev_fill(const struct kd_member *members, size_t count, uint32_t *table, size_t size);
