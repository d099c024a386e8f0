"""8-bit products of encoders on CPUs: the weights have a scale per output, the inputs one per row.

A product of integers is exact, so the only error is that of rounding weights and inputs. The scale of a row depends on
nothing but that row. A text's score is therefore the same alone and next to other texts, and no calibration is needed.
"""
