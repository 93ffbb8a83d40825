"""The version of the package, and the numbers of its recipes."""

__all__ = ["RECIPES", "__version__"]

__version__ = "0.1.0"

# Recipes by which the models of each estimator are trained and predict. A change of the code that
# moves results (what "auto" becomes, losses, network, optimizer, random numbers, decoding) raises
# the number of those that it moves, and then benchmarks no longer count their records of before.
# Defaults need no other number: a record has all parameters. tests/test_recipe.py notices most
# such changes.
RECIPES = {"MedSymmFlowClassifier": 2, "LatentMedSymmFlowClassifier": 3}
