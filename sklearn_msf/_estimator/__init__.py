"""The scikit-learn interface: parameters, checks of X and y, fitting, saving.

Only this room knows scikit-learn's interface of estimators. It may import every room below it.
`base.BaseMedSymmFlowClassifier` is the one class above the two public ones, which are in the
modules `classifier` and `latent_classifier` of the package. `sample_augmentation` and `plotting`
take their checks of arguments and seeds from `parameters`.
"""
