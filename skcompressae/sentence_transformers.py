"""Fitted compressors as the last module of a SparseEncoder of sentence-transformers: text in, codes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_scalar

from skcompressae._checks import check_compressor
from skcompressae._model_weights import check_finite, code_settings, coding_weights, settings_digest
from skcompressae._module_folders import HEADER, MODULE_SETTINGS, MODULE_WEIGHTS, read_folder, write_folder
from skcompressae._torch._codes import encode_batch
from skcompressae._transformer import CompresSAETransformer
from skcompressae.exceptions import ModelFormatError

try:
    import sentence_transformers
except ImportError as error:
    raise ImportError(
        "skcompressae.sentence_transformers needs sentence-transformers: install the extra "
        "'sentence-transformers' of skcompressae"
    ) from error
if hasattr(sentence_transformers, "base"):
    from sentence_transformers.base.modules import Module
else:  # before 5.4
    from sentence_transformers.models import Module

__all__ = ["CompresSAEModule"]


class CompresSAEModule(Module):
    """Turn the sentence embeddings of the modules before it into the codes of a fitted compressor.

    It reads ``features["sentence_embedding"]``, of shape (batch, n_features), and puts codes in its place: a dense
    tensor of shape (batch, n_components) with at most k nonzeros a row, which ``SparseEncoder.encode`` makes sparse.
    They are what :meth:`~skcompressae.CompresSAETransformer.transform` gives for the same embeddings, up to rounding,
    for every `coding` and `norm`, computed on the device of the embeddings. With ``max_active_dims=16``,
    ``SparseEncoder.encode`` fits codes of 16 nonzeros, as ``set_params(k=16)`` does.

    The weights are buffers: training a SparseEncoder leaves them alone and passes gradients on to the modules before.
    The choice of latents has no gradient, and the exponent by which `flattening` draws values together none either.
    They stay float32 where a model is cast to less, as rounded weights give other codes.

    Parameters
    ----------
    weights : mapping of str to array or tensor
        "encoder_weights" and "components" of shape (n_components, n_features), "encoder_bias" of shape (n_components,),
        all float32. Make a module by :meth:`from_compressor` rather than from these.
    k : int
        Nonzeros per code.
    coding : {"pursuit", "refined_pursuit", "least_squares", "activations"}
        As in :class:`~skcompressae.CompresSAETransformer`.
    candidate_factor : float or None
        As in :class:`~skcompressae.CompresSAETransformer`; None where `coding` is no pursuit.
    norm : {"input", "unit", None}
        As in :class:`~skcompressae.CompresSAETransformer`.
    flattening : float, default=0
        How far fitted values are drawn together, as in :class:`~skcompressae.CompresSAETransformer`; used where `norm`
        is not None and `coding` not "activations".
    keeps_mean : bool, default=False
        Whether scaling to `norm` leaves latent 0, the mean's, at the row's share of the mean and stretches the others.

    See Also
    --------
    skcompressae.onnx.to_onnx : The encoder alone, without Python or PyTorch.
    skcompressae.CompresSAETransformer.transform_query : Queries that find more than codes do.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.sentence_transformers import CompresSAEModule
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> module = CompresSAEModule.from_compressor(compressor)
    >>> codes = module({"sentence_embedding": torch.from_numpy(X)})["sentence_embedding"]
    >>> bool(np.allclose(codes, compressor.transform(X).toarray(), atol=1e-4))
    True
    """

    forward_kwargs = {"max_active_dims"}

    encoder_weights: torch.Tensor
    encoder_bias: torch.Tensor
    components: torch.Tensor

    def __init__(
        self,
        weights: Mapping[str, Any],
        *,
        k: int,
        coding: str,
        candidate_factor: float | None,
        norm: str | None,
        flattening: float = 0.0,
        keeps_mean: bool = False,
    ) -> None:
        super().__init__()
        for name in MODULE_WEIGHTS:
            # a copy, as NumPy's memory may be read-only or the compressor's
            self.register_buffer(name, torch.tensor(np.asarray(weights[name]), dtype=torch.float32, device="cpu"))
        self.k = k
        self.coding = coding
        self.candidate_factor = candidate_factor
        self.norm = norm
        self.flattening = flattening
        self.keeps_mean = keeps_mean

    @classmethod
    def from_compressor(cls, model: CompresSAETransformer) -> CompresSAEModule:
        """Make a module of a fitted compressor.

        It has the compressor's `k`, `coding` and `norm` of now, and copies of its weights: what is done to one later
        does not change the other.

        Parameters
        ----------
        model : CompresSAETransformer
            Fitted on embeddings of the modules that will come before.

        Returns
        -------
        CompresSAEModule
            On the CPU; a SparseEncoder moves it to its device.

        Raises
        ------
        TypeError
            If `model` is no CompresSAETransformer.
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        ValueError
            If its weights are not finite.

        See Also
        --------
        load : Makes one of a folder instead.
        skcompressae.CompresSAETransformer.transform : Gives the same codes as a sparse matrix.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> module
        CompresSAEModule(n_features=8, n_components=16, k=3, coding='pursuit', norm='input')
        >>> CompresSAEModule.from_compressor(compressor.set_params(k=2, norm="unit"))
        CompresSAEModule(n_features=8, n_components=16, k=2, coding='pursuit', norm='unit')
        """
        check_compressor(model)
        model._check_encoding_parameters()
        k = model._effective_k(len(model.components_))  # warns like transform
        settings = {**code_settings(model), "k": k}
        weights = coding_weights(model)
        check_finite(weights)
        return cls(weights, **{name: settings[name] for name in MODULE_SETTINGS})

    @property
    def model_hash(self) -> str:
        """Fingerprint of weights and settings.

        That of :func:`~skcompressae.model_hash` for the compressor with ``precision="float32"``, in which the module
        computes: where both are the same, so are the codes.

        See Also
        --------
        skcompressae.model_hash : Says what it depends on.
        get_config_dict : Holds it, so that :meth:`load` can tell whether a folder is intact.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer, model_hash
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> module.model_hash == model_hash(compressor.set_params(precision="float32"))
        True
        """
        weights = {name: getattr(self, name).detach().cpu().numpy() for name in MODULE_WEIGHTS}
        settings = {name: getattr(self, name) for name in MODULE_SETTINGS}
        return settings_digest(weights, {**settings, "precision": "float32"})

    def forward(self, features: dict[str, Any], max_active_dims: int | None = None) -> dict[str, Any]:
        """Replace sentence embeddings by their codes.

        Calling the module does this. Codes are computed in float32 on the device of the embeddings, under autocast
        too, and pass gradients on to them.

        Parameters
        ----------
        features : dict
            With a tensor "sentence_embedding" of shape (batch, n_features).
        max_active_dims : int or None, default=None
            Nonzeros per code in the place of `k`.

        Returns
        -------
        dict
            The same, with codes of shape (batch, n_components), float32.

        Raises
        ------
        ValueError
            If there are no sentence embeddings, they have another shape than (batch, n_features) or numbers beyond
            float32, or `max_active_dims` is below 1.
        TypeError
            If `max_active_dims` is no integer.

        See Also
        --------
        skcompressae.CompresSAETransformer.transform : Gives the same codes as a sparse matrix.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> codes = module({"sentence_embedding": torch.from_numpy(X)})["sentence_embedding"]
        >>> tuple(codes.shape), int((codes != 0).sum(dim=1).max())
        ((200, 16), 3)
        >>> fewer = module({"sentence_embedding": torch.from_numpy(X)}, max_active_dims=2)["sentence_embedding"]
        >>> int((fewer != 0).sum(dim=1).max())
        2
        """
        embeddings = features.get("sentence_embedding")
        n_components, n_features = self.components.shape
        if embeddings is None:
            raise ValueError(
                f"features must have a 'sentence_embedding'; got {', '.join(features) or 'nothing'}. Put "
                "CompresSAEModule behind a module that makes one, such as Pooling."
            )
        if embeddings.ndim != 2:
            raise ValueError(
                f"sentence_embedding must have shape (batch, n_features={n_features}); got {tuple(embeddings.shape)}."
            )
        if embeddings.shape[1] != n_features:
            raise ValueError(
                f"sentence_embedding must have n_features={n_features} columns, as the compressor was fitted on; got "
                f"{embeddings.shape[1]}. Fit a compressor on embeddings of these very modules."
            )
        if embeddings.dtype == torch.float64 and not torch.isfinite(embeddings.float()).all():
            raise ValueError(
                "sentence_embedding must be finite in float32, in which codes are computed; got float64 numbers up to "
                f"{embeddings.abs().max():.3g}. Scale embeddings down."
            )
        k = self.k
        if max_active_dims is not None:
            check_scalar(max_active_dims, "max_active_dims", Integral)
            k = int(max_active_dims)
        indices, values = encode_batch(
            embeddings,
            self.encoder_weights,
            self.encoder_bias,
            self.components,
            min(k, n_components),
            **{name: getattr(self, name) for name in MODULE_SETTINGS if name != "k"},
        )
        codes = torch.zeros((len(values), n_components), dtype=values.dtype, device=values.device)
        features["sentence_embedding"] = codes.scatter(1, indices, values)
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width of a code.

        It is what a SparseEncoder gives as the dimension of its embeddings, and what a vector database is told.

        Returns
        -------
        int
            The compressor's `n_components`; at most k entries of a code are not zero.

        See Also
        --------
        get_sentence_embedding_dimension : The same for sentence-transformers before 5.4.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> module.get_embedding_dimension()
        16
        """
        return len(self.components)

    def get_sentence_embedding_dimension(self) -> int:
        """Return the width of a code, under its older name.

        sentence-transformers before 5.4 asks for it by this name.

        Returns
        -------
        int
            The compressor's `n_components`; at most k entries of a code are not zero.

        See Also
        --------
        get_embedding_dimension : The same.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> module.get_sentence_embedding_dimension()
        16
        """
        return self.get_embedding_dimension()

    def get_config_dict(self) -> dict[str, Any]:
        """Return what is saved beside the weights.

        It is the content of ``config.json``: all that :meth:`load` needs to make the module again, and to refuse a
        folder that is another's, newer or damaged.

        Returns
        -------
        dict
            Kind and version of the folder, shape, settings, and :attr:`model_hash`.

        See Also
        --------
        save : Writes it.
        load : Checks it.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> config = module.get_config_dict()
        >>> {name: config[name] for name in ("n_components", "n_features", "k", "coding", "norm")}
        {'n_components': 16, 'n_features': 8, 'k': 3, 'coding': 'pursuit', 'norm': 'input'}
        """
        n_components, n_features = self.components.shape
        return {
            **HEADER,
            "n_components": n_components,
            "n_features": n_features,
            **{name: getattr(self, name) for name in MODULE_SETTINGS},
            "model_hash": self.model_hash,
        }

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the module into a folder.

        The settings go to ``config.json``, the weights to ``model.safetensors``. A SparseEncoder that is saved calls
        this for the module's own folder in its.

        Parameters
        ----------
        output_path : str
            The folder, which exists.
        *args : tuple
            Not used.
        safe_serialization : bool, default=True
            False writes the weights as a torch state dict, ``pytorch_model.bin``, instead. The file of the other
            kind that an earlier save left is removed.
        **kwargs : dict
            Not used.

        See Also
        --------
        load : Reads the folder.
        skcompressae.save_model : Writes the compressor, which trains on from there.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> with TemporaryDirectory() as folder:
        ...     module.save(folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['config.json', 'model.safetensors']
        """
        write_folder(self, output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> CompresSAEModule:
        """Read a module from the folder of a model.

        A SparseEncoder that is loaded calls this. Nothing in the folder is executed: it is read as JSON and
        safetensors, or, where there are none, as a torch state dict with ``weights_only=True``. Settings and weights
        that do not have the hash they were saved with are refused.

        Parameters
        ----------
        model_name_or_path : str
            Folder of the whole model, or its name on the Hugging Face Hub.
        subfolder : str, default=""
            Where in it the module is.
        token : bool, str or None, default=None
            As in ``SparseEncoder``, like the next three: for models on the Hub.
        cache_folder : str or None, default=None
            As in ``SparseEncoder``.
        revision : str or None, default=None
            As in ``SparseEncoder``.
        local_files_only : bool, default=False
            As in ``SparseEncoder``.
        **kwargs : dict
            Not used.

        Returns
        -------
        CompresSAEModule
            The codes that it computes are those of the one that was saved.

        Raises
        ------
        skcompressae.exceptions.ModelFormatError
            If the folder is foreign, damaged, or written by a newer version.

        See Also
        --------
        save : Writes the folder.
        from_compressor : Makes a module of a compressor instead.

        Examples
        --------
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.sentence_transformers import CompresSAEModule
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> module = CompresSAEModule.from_compressor(compressor)
        >>> with TemporaryDirectory() as folder:
        ...     module.save(folder)
        ...     again = CompresSAEModule.load(folder, local_files_only=True)
        >>> again.model_hash == module.model_hash
        True
        """
        place: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        weights, settings, wanted = read_folder(cls, model_name_or_path, place)
        module = cls(weights, **settings)
        if module.model_hash != wanted:
            name = f"{model_name_or_path}/{subfolder}" if subfolder else model_name_or_path
            raise ModelFormatError(f"{name} is damaged: weights and settings do not have the hash in its config.json.")
        return module

    def __repr__(self) -> str:
        n_components, n_features = self.components.shape
        return (
            f"CompresSAEModule(n_features={n_features}, n_components={n_components}, k={self.k}, "
            f"coding={self.coding!r}, norm={self.norm!r})"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> CompresSAEModule:
        """Follow moves to other devices, but not to other dtypes: rounded weights give other codes."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
