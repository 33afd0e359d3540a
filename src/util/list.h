/*
 * Intrusive doubly linked list with a head node. The element embeds struct ds_list; no allocation,
 * no lock of its own.
 */
#ifndef DS_UTIL_LIST_H
#define DS_UTIL_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "util/mem.h"

struct ds_list {
	struct ds_list *prev, *next;
};

static inline void ds_list_init(struct ds_list *list)
{
	list->prev = list->next = list;
}

static inline bool ds_list_is_empty(const struct ds_list *list)
{
	return list->next == list;
}

static inline void ds_list_add_before(struct ds_list *at, struct ds_list *node)
{
	node->prev = at->prev;
	node->next = at;
	at->prev->next = node;
	at->prev = node;
}

static inline void ds_list_push_back(struct ds_list *list, struct ds_list *node)
{
	ds_list_add_before(list, node);
}

static inline void ds_list_push_front(struct ds_list *list, struct ds_list *node)
{
	ds_list_add_before(list->next, node);
}

/* The node is left as an empty list, so that removing it again does nothing. */
static inline void ds_list_remove(struct ds_list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	ds_list_init(node);
}

/* Moves all nodes of `from` to the end of `to`; `from` becomes empty. */
static inline void ds_list_splice(struct ds_list *to, struct ds_list *from)
{
	if (ds_list_is_empty(from))
		return;
	from->next->prev = to->prev;
	from->prev->next = to;
	to->prev->next = from->next;
	to->prev = from->prev;
	ds_list_init(from);
}

#define ds_list_entry(node, type, member) ds_container_of(node, type, member)
#define ds_list_for_each(pos, list) \
	for (struct ds_list *pos = (list)->next; pos != (list); pos = pos->next)
/* The current node may be removed in the body. */
#define ds_list_for_each_safe(pos, tmp, list)                                     \
	for (struct ds_list *pos = (list)->next, *tmp = pos->next; pos != (list); \
	     pos = tmp, tmp = tmp->next)

#endif
