"""Writes golden/bin/*.bin with Python's own pickle: what tests/readers_pairs.rs must read. Tiny PNM pictures stand for JPEGs.

    python3 make_bins.py        # protocols 2 to 5, made with Python 3.11
    python2 make_bins.py        # protocol 2 as InsightFace's lfw2pack.py wrote it, made with Python 2.7
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
prefix, protocols = ("python2_", [2]) if sys.version_info[0] == 2 else ("", [2, 3, 4, 5])
for protocol in protocols:
    with open(os.path.join(golden, "%sprotocol%d.bin" % (prefix, protocol)), "wb") as file:
        pickle.dump((bins, same), file, protocol=protocol)
