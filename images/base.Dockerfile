# Stands in for python:3.13-slim-trixie where no registry can be reached: base.tar is made by debootstrap.
FROM scratch
ADD base.tar /
ENV LANG=C.UTF-8
CMD ["python3"]
