"""Stacks on AWS: template, package, deployment, jobs and bills.  The command is `smpi`."""
