def refine(shares, image):
    return shares
