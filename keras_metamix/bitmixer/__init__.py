"""Bit-Mixer (Bulat and Tzimiropoulos, ICCV 2021): one network, bit-widths chosen at run time."""
