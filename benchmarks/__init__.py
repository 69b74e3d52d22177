"""Programs that measure what the documentation states, and that make the shipped weights and the pages' tables.

`speed` compares with other implementations, `reading` asks what is read in pictures, `robustness` what a network makes
of damaged images, `compilers` compiles for accelerators that are not there, `release` makes what is shipped.
"""
