"""Pure numpy, scipy and numba: top-k, CSR assembly, least squares on a support, packing, scoring. No I/O, no torch."""
