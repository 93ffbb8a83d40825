"""What the public modules of evaluation share.

Imports no other room. `validation` checks scores and errors, `risk_control` certifies thresholds,
`nearest_images` finds copies, `external_classifier` asks another classifier about drawn images.
"""
