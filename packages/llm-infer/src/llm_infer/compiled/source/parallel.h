/* Items of work shared between threads. Which thread takes an item never changes its result. */
#pragma once
#include <stddef.h>

typedef void (*item_fn)(const void *task, size_t item);

/* Calls fn(task, 0) to fn(task, items - 1), by up to `threads` threads. */
void share(item_fn fn, const void *task, size_t items, int threads);
