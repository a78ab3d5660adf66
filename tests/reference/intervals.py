"""Prints 95 % Wilson score intervals as SciPy computes them: successes, trials, low, high.

    python -m pip install scipy
    python intervals.py > intervals.txt

`src/verification/interval.rs` compares with the numbers.
"""

import platform

import scipy
from scipy.stats import binomtest

print(f"# scipy {scipy.__version__}, Python {platform.python_version()}, binomtest(k, n).proportion_ci(0.95, 'wilson')")
for n in (1, 2, 10, 37, 300, 3000, 3500, 1_000_000):
    for k in sorted({0, 1, n // 3, n - n // 100 - 1, n}):
        low, high = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
        print(k, n, repr(float(low)), repr(float(high)))
