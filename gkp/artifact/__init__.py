"""The artifact built on the library: experiments that are computed once, the paper's tables, figures and claims."""
