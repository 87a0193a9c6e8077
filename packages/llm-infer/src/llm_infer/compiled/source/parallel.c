/* Threads of torch's own OpenMP runtime, so that there is one pool and its threads are awake. */
#include "parallel.h"

/* libgomp's GOMP_parallel, which libomp has, too: fn(data) in each of `threads` threads. */
typedef void (*parallel_fn)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);

static parallel_fn run_parallel;

void llm_set_parallel(void *function) { run_parallel = (parallel_fn)function; }

struct call {
    item_fn fn;
    const void *task;
    size_t items, next;
};

static void take_items(void *data)
{
    struct call *call = data;
    for (;;) {
        size_t item = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);
        if (item >= call->items)
            return;
        call->fn(call->task, item);
    }
}

void share(item_fn fn, const void *task, size_t items, int threads)
{
    struct call call = {fn, task, items, 0};
    if ((size_t)threads > items)
        threads = (int)items;
    if (threads > 1 && run_parallel)
        run_parallel(take_items, &call, (unsigned)threads, 0);
    else
        take_items(&call);
}
