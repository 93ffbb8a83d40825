"""The scikit-learn interface: parameters, checks of X and y (NaN is refused), fitting, saving.

Only this room knows scikit-learn's estimators. It may import every room below it. The two public
classes are in the modules `classifier` and `latent_classifier` of the package.
"""
