"""Stacks on AWS: template, package, deployment, policies, history.  The command is `smpi`."""
