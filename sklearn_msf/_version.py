"""The version of the package, and the number of its recipe."""

__all__ = ["RECIPE", "__version__"]

__version__ = "0.1.0"

# Recipe by which models are trained and predict. A change of the code that moves results (defaults,
# what "auto" becomes, losses, network, optimizer, random numbers, decoding) raises it, and then
# benchmarks no longer count records of before. tests/test_recipe.py notices most such changes.
# 0 stands for records from before there was a number.
RECIPE = 2
