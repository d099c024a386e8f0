"""The optional package `sie-kernels`: the library, what of it this CPU can run, and the check of its results.

Without the package everything is computed with torch's operators. With it, each function is compared with them once per
process before its first use, and is not used if it differs.
"""
