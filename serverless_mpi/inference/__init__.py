"""Distributed inference of sparse neural networks.

References
----------
Oakley and Ferhatosmanoglu, "FSD-Inference: Fully Serverless Distributed Inference with Scalable
Cloud Communication", ICDE 2024.
"""
