"""Independent random streams from a few integers."""

import hashlib
import struct

__all__ = ["mix_seed"]


def mix_seed(*parts: int) -> int:
    """Returns a 64-bit seed; seeds of different ``parts`` have nothing to do with each other."""
    packed = struct.pack(f"<{len(parts)}Q", *(part % 2**64 for part in parts))
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")
