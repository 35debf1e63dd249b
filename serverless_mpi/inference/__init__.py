"""Distributed inference of sparse neural networks (after FSD-Inference, Oakley and Ferhatosmanoglu,
ICDE 2024).
"""
