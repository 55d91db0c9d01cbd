"""The server's side of copies: short scripts, each on keys of one slot (`_copies_core.py` says why).

Their text is the native module's (`crates/proxy/src/copies/*.lua`): clients and proxies share copies. Every
one may be run twice, as client libraries do when a reply was lost.
"""

from typing import Final

from keyheat._keyheat import copies_script

# owner, lease in ms, the register's ttl, places -> {1, version, server's ms} | {0}: it is another's.
LEASE: Final = copies_script("lease")
# the register's ttl, how long places count -> {new version, places that may hold a copy}.
MOVE: Final = copies_script("move")
# version, digest, deadline, the fence's ttl, the value if it is to be written
# -> 1 placed or prolonged | 0 voided or too late | -1 the value is needed.
PLACE: Final = copies_script("place")
# version, the fence's ttl -> 1 the copy is gone | 0 it was already.
FENCE: Final = copies_script("fence")
