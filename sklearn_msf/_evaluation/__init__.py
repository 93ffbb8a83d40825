"""Code that the public evaluation modules and the estimators share.

Imports no other room. `labels` compares labels, `validation` checks scores and errors,
`risk_control` certifies thresholds, `confusion` counts and prices answers, `groups` combines the
predictions of a group, `nearest_images` finds copies, `external_classifier` classifies generated
images with an independent classifier.
"""
