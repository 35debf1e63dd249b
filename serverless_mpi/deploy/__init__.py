"""A stack on AWS: its template, its package, deploying and removing it, looking after it.  `smpi` is its command."""
