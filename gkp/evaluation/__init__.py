"""Accuracy without and under attack, in the paper's protocol and in the field's; comparisons; the audit; RobustBench."""
