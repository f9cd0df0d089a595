"""Several batches at a time on a CPU, each on one core, instead of one batch on all cores.

A forward pass is a few hundred small operations; with all cores on each, they wait for one another at the end of every
one, and while Python reads out the answers they all wait. A lane is a thread that computes alone.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch


def usual_lanes(device):
    """How many batches are worth computing side by side: one a core that torch may use on a CPU, else one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def in_lanes(function, items, lanes):
    """Yield (item, function(item)) in the order of `items`, up to `lanes` of them computed at the same time.

    What one raises is raised here, in its turn. Items that nobody waits for any more are not begun.
    """
    if lanes <= 1:
        for item in items:
            yield item, function(item)
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(lanes, thread_name_prefix="lane", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead, items = deque(), iter(items)
        try:
            for item in items:
                ahead.append((item, pool.submit(function, item)))
                torch.set_num_threads(threads)  # a lane's setting is also what threads to come would begin with
                if len(ahead) > lanes:  # one waits, so that no lane does
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
