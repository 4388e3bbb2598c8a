"""How each family lays an image out in image tokens: one small rule per layout.

`table` says which rule a family follows; each file lists the families whose rules it
holds. `grids` has what rules are made of and the plainest of them, `crops` is for
images that are cropped, resized or padded, `tiles` for images cut in parts, `canvases`
for images in the corner of a canvas.
"""
