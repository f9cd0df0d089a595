"""How much memory a process has in RAM."""

import sys
from pathlib import Path


def resident_bytes(peak=False, pid="self"):
    """Bytes of process `pid` now, or the most it ever had; None where the system does not say.

    On Linux the kernel's VmRSS and VmHWM: getrusage would also count what the process that started this one held at
    that moment.
    """
    key = "VmHWM:" if peak else "VmRSS:"
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        return next((int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(key)), None)
    if not peak or pid != "self":
        return None
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
