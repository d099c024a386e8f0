"""Other libraries' engines as contenders. The benchmarks do not require them; each module names its packages."""
