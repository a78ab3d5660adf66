"""Writes golden/bin/*.bin with Python's own pickle: what tests/readers_pairs.rs must read. Tiny PNM pictures stand for JPEGs.

    python3 make_bins.py        # protocols 0 to 5, made with Python 3.11; those with NumPy where it is installed (made with 2.4)
    python2 make_bins.py        # protocols 0 and 2 as InsightFace's lfw2pack.py wrote them, made with Python 2.7
"""

import os
import pickle
import sys

golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "bin")
if not os.path.isdir(golden):
    os.makedirs(golden)


def picture(k):
    """2 x 2 pixels."""
    return b"P6 2 2 255\n" + bytes(bytearray([k, 1, 2, k, 3, 4, k, 5, 6, k, 7, 255]))


bins = [picture(k) for k in range(6)]
same = [True, False, True]


def write(name, protocol, content):
    with open(os.path.join(golden, "%sprotocol%d.bin" % (name, protocol)), "wb") as file:
        pickle.dump(content, file, protocol=protocol)


if sys.version_info[0] == 2:
    for protocol in [0, 2]:
        write("python2_", protocol, (bins, same))
    sys.exit()
for protocol in range(6):
    write("", protocol, (bins, same))
try:
    import numpy as np
except ImportError:
    sys.exit()
column = np.frombuffer(bins[1], np.uint8).reshape(-1, 1).copy()
images = [np.frombuffer(bins[0], np.uint8), column, bytearray(bins[2]), np.bytes_(bins[3])] + bins[4:]
for protocol in [0, 2, 4, 5]:
    write("numpy_", protocol, (images, [np.bool_(True), np.int64(0), np.float32(1)]))
    write("objects_", protocol, (np.array(bins, object), np.array(same)))
    write("fixed_", protocol, (np.array(bins), np.array(same, ">i4")))
