"""Training, encoding on devices, and all that torch computes. On the CPU, torch is loaded where it multiplies only."""
