"""Pickles as Python 2's cPickle wrote them in 2009: the exact format of the CIFAR files.

Python 3 cannot write them (its text and its arrays come out differently), so the opcodes are put
together here: protocol 2, text as byte strings, arrays through ``numpy.core.multiarray``.
"""

import struct

import numpy as np

BYTE_TYPE = (
    b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"


def dumps(value) -> bytes:
    """The pickle of ``value``: dictionaries, lists, ASCII text, integers and arrays of bytes."""
    return b"\x80\x02" + encoded(value) + b"."


def encoded(value) -> bytes:
    """The opcodes that put ``value`` on the stack."""
    if isinstance(value, dict):
        items = b"".join(encoded(key) + encoded(entry) for key, entry in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(encoded(entry) for entry in value) + b"e"
    if isinstance(value, str):
        return byte_string(value.encode("latin1"))
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    shape = b"".join(encoded(size) for size in value.shape)
    state = b"(K\x01(" + shape + b"t" + BYTE_TYPE + b"\x89" + byte_string(value.tobytes()) + b"tb"
    return EMPTY_ARRAY + state


def byte_string(content: bytes) -> bytes:
    """Python 2's str: short ones have a one-byte length."""
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + struct.pack("<i", len(content)) + content


def cifar_files(
    train: int = 12, test: int = 8, seed: int = 0, classes: int | None = None
) -> dict[str, bytes]:
    """The three files of a small CIFAR-100, by name; with ``classes``, so many in turn."""
    random = np.random.RandomState(seed)
    files = {}
    for split, number in (("train", train), ("test", test)):
        drawn = [int(label) for label in random.randint(0, 100, number)]
        fine = [i % classes for i in range(number)] if classes else drawn
        data = random.randint(0, 256, (number, 3072))
        if classes:  # each in a colour of its own
            colours = np.random.RandomState(seed).randint(0, 256, (classes, 3))
            data = (data + 3 * colours[fine].repeat(1024, axis=1)) // 4
        files[split] = dumps(
            {
                "filenames": [f"image_{i}.png" for i in range(number)],
                "batch_label": f"{split}ing batch 1 of 1",
                "fine_labels": fine,
                "coarse_labels": [label // 5 for label in fine],
                "data": data.astype(np.uint8),
            }
        )
    files["meta"] = dumps(
        {
            "fine_label_names": [f"fine {i}" for i in range(100)],
            "coarse_label_names": [f"coarse {i}" for i in range(20)],
        }
    )
    return files
