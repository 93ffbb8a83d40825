"""The scikit-learn face: parameters, checks of X and y, fitting, saving.

The only room that knows scikit-learn's estimators; may import every room below it. `classifier`
and `latent_classifier` beside it hold the two public classes.
"""
