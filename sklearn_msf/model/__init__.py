"""What a fitted field does with images: classify, draw, tell its uncertainty.

May import `flow`, `data` and what lies below; knows neither training nor scikit-learn.
"""
