"""Several batches at a time on a CPU, each on its share of the cores, instead of one batch on all of them.

A forward pass is a few hundred small operations; with all cores on each, they wait for one another at the end of every
one, and while Python reads out the answers they all wait. A lane is a thread that computes with its share alone.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

MOST = 4


def usual_lanes(device):
    """How many batches are worth computing side by side: on a CPU one a core that torch may use, up to MOST; else one."""
    return min(MOST, torch.get_num_threads()) if device.type == "cpu" else 1


def take_share(threads, lanes):
    """Give the thread that calls this, one of `lanes` that compute at the same time, its share of torch's `threads`."""
    torch.get_num_threads()  # a thread's first call takes over the setting of all; later it would undo the share
    torch.set_num_threads(max(1, threads // lanes))


def begin(threads, lanes, begun):
    """The same, and wait for the other lanes."""
    take_share(threads, lanes)
    begun.wait()


def in_lanes(function, items, lanes):
    """Yield (item, function(item)) in the order of `items`, up to `lanes` of them computed at the same time.

    What one raises is raised here, in its turn. Items that nobody waits for any more are not begun.
    """
    if lanes <= 1:
        for item in items:
            yield item, function(item)
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(lanes, "lane") as pool:
        begun = Barrier(lanes + 1)
        for _ in range(lanes):
            pool.submit(begin, threads, lanes, begun)
        begun.wait()
        torch.set_num_threads(threads)  # a lane's setting is also what threads to come would begin with
        ahead, items = deque(), iter(items)
        try:
            for item in items:
                ahead.append((item, pool.submit(function, item)))
                if len(ahead) > lanes:  # one waits, so that no lane does
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
