"""Comparison of methods that enlarge pictures, on the same pictures and noise, for `evaluate` and `reproduce`.

`agents.study.methods` defines the methods, `Runner.run` runs them, and the paper's tables (`agents.study.paper`) are
made of the same rows as those of `evaluate`.
"""
