"""The estimator: parameters, validation, scikit-learn's conventions. The mathematics is in `_core` and `_torch`."""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from skcompressae._compat import CallbackSupportMixin, Interval, StrOptions
from skcompressae._fit_methods import FitMethodsMixin
from skcompressae._model_io import ModelFileMixin
from skcompressae._recipes import RECIPES

__all__ = ["CompresSAETransformer"]


class CompresSAETransformer(ModelFileMixin, CallbackSupportMixin, FitMethodsMixin, BaseEstimator):
    """Compress embeddings into sparse codes with a sparse autoencoder.

    Every row x of shape (n_features,) becomes a code s of shape (n_components,) with at most `k` signed nonzeros, such
    that ``s @ components_`` points where x points. Neighbours by cosine (or, with ``norm="input"``, by inner product)
    can then be searched among the codes.

    Parameters
    ----------
    n_components : int, default=4096
        Number of latents: the width of a code. At most ``2**31 - 1``.

    k : int, default=32
        Nonzeros per code. May be lowered after fitting (``set_params(k=16)``) without retraining. A value above
        `n_components` is clipped to it, with a warning.

    recipe : {"default", "dense", "paper"}, default="default"
        What the parameters left at "auto" become. "dense" is for rows that are searched by dense queries, or compared
        as reconstructions, only: as "default", but for a refined pursuit and a decoder refitted to its codes, which
        find more of the neighbours there, and fewer where codes are compared with codes (:doc:`recipes </recipes>`).
        "paper" is the recipe of [1]_: random untied start, constant learning rate, batches of 100,000 rows, 500 steps,
        the encoder's own activations as values.

    coding : {"auto", "pursuit", "refined_pursuit", "least_squares", "activations"}, default="auto"
        How a code is made from the encoder's pre-activations ``p = W x / ||x|| + b``.

        - "activations": the k entries of largest magnitude as they are, equation 2 of [1]_.
        - "least_squares": the same support, values refitted to reconstruct x best.
        - "pursuit": the k / 2 entries of largest magnitude, and of the others among the ``candidate_factor * k``
          largest those that explain most of what is left of x, with a share for their magnitude; values refitted
          (:doc:`recipes </recipes>`).
        - "refined_pursuit": the same, then twice more among the k latents of the code and the k others that correlate
          most with what it leaves of x. Reconstructs best, for three times the time; codes of close rows have less in
          common.

        "auto" is "pursuit" in the default recipe, "refined_pursuit" in "dense" and "activations" in "paper". May be
        changed after fitting.

    candidate_factor : float, default=2.0
        Entries per nonzero that a pursuit chooses from at first, at least 1. More reconstruct better, for more time; 1
        leaves nothing to choose, which makes "pursuit" of it "least_squares".

    norm : {"input", "unit", None}, default="input"
        Scale of a code. "input": its reconstruction has the L2 norm of the input row, so that dot products survive.
        "unit": its reconstruction has norm 1. None: values as they come for the row divided by its norm. Scaling leaves
        the mean's latent, if there is one (`scales_mean_apart_`) and values are fitted, at the row's own share of the
        mean, and stretches the others: rows stay as near to the mean as they are (:doc:`recipes </recipes>`).

    flattening : float or "auto", default="auto"
        How far fitted values of a scaled code are drawn together: to the power of 1 - `flattening` r, r the norm of
        what least squares leaves of the row divided by its norm. Not in the paper: close rows agree on small values
        more than least squares says, so recall rises, code to code and of dense queries, while little is lost of the
        reconstruction (:doc:`recipes </recipes>`). In [0, 1); 0 leaves values as they are fitted. "auto" is 0.2 in the
        default recipe, 0 in "paper". Without effect on activations and where `norm` is None.

    loss_weights : tuple of two floats, default=(1.0, 0.125)
        Weights of the cosine distance of the reconstruction with k and with 4k latents (equation 4 of [1]_).

    neighborhood_weight : float or "auto", default="auto"
        Weight, in units of the mean cosine distance, of a training term that is not in the paper: it makes cosines of
        codes rank rows as cosines of rows do (:doc:`recipes </recipes>`), for better recall of code-to-code search. 0
        leaves it out, as the paper's recipe does. "auto" is 1 in the default recipe, sqrt(32 / `k`) for `k` below 32:
        short codes gain most by it.

    usage_power : float or "auto", default="auto"
        Power of a latent's use by which :meth:`fit` scales its encoder row in the end, so that codes prefer latents
        which many rows use and close rows agree on (:doc:`recipes </recipes>`). Not in the paper: 0 leaves it out, as
        the paper's recipe does. "auto" is 0.15 in the default recipe, but 0 for ``coding="activations"``, which does
        without; up to 0.3 favours code-to-code search. Then, unless it is 0 or codes are activations, encoder rows of
        latents that no counted row has in its code are lengthened by a fifth, up to four times, until at most 1 % are
        dead; not where more than half are, which the data do not need. :meth:`partial_fit` keeps the scale there is.

    n_refits : int or "auto", default="auto"
        How often :meth:`fit` fits the decoder anew in the end, by least squares to the codes of training rows (at most
        65,536), a pass of the method of optimal directions [2]_ with a ridge. Not in the paper: rows are reconstructed
        better, and codes of close rows have less in common (:doc:`recipes </recipes>`). "auto" is 0 in the default
        recipe, 3 in "dense". :meth:`partial_fit` does none.

    residual_bytes : int or None, default=None
        Bytes of a second code of each row, which :meth:`transform_packed` adds and by which
        ``CodeNearestNeighbors(rerank=...)`` puts candidates in order: a product quantisation of what the packed code
        leaves, learned by :meth:`fit` [3]_ (:ref:`hybrid codes <hybrid-codes>`). At most `n_features`; None leaves it
        out. :meth:`transform` does not use it. It is smallest for ``norm=None``; with ``norm="input"`` long rows decide
        what is learned, as befits dot products.

    nested : bool, default=False
        Train for `k`, `k` / 2, `k` / 4 and `k` / 8 in turn (four, two, one and one of eight steps; in the last 15 % of
        a fit `k` and `k` / 2), so that one model serves them all (``set_params(k=8)``) nearly as well as models fitted
        at each. Costs a little recall at `k` itself, most of it in code-to-code search (:doc:`recipes </recipes>`). The
        entries of `loss_curve_` then belong to these k in turn.

    init : {"auto", "data", "kaiming"}, default="auto"
        Start of training: "data", latents seeded with training rows blended with noise and a tied encoder, or
        "kaiming", the paper's random untied weights. "auto" is "data" in the default recipe, "kaiming" in "paper".

    learning_rate : float or "auto", default="auto"
        Peak learning rate of Adam. In the default recipe "auto" is 0.006, times the square root of u / 96 where a batch
        uses a latent less than 96 times on average, u = `batch_size` * min(4 `k`, `n_components`) / `n_components`; and
        half of that in :meth:`partial_fit`, which does not decay it. It is 0.001 in "paper".

    learning_rate_schedule : {"auto", "cosine", "linear", "constant"}, default="auto"
        Decay of the learning rate over `max_iter` steps, after a linear warm-up. "auto" is "cosine" in the default
        recipe, "constant" in "paper".

    warmup_fraction : float or "auto", default="auto"
        Share of the steps over which the learning rate rises to its peak. "auto" is 0.05 in the default recipe, 0 in
        "paper".

    batch_size : int or "auto", default="auto"
        Rows per optimiser step. More than there are rows means all of them. "auto" is 1,024 in the default recipe, a
        sixteenth of the rows (but at least 64) where these are fewer than 16,384, and 100,000 in "paper".

    max_iter : int or "auto", default="auto"
        Optimiser steps. "auto" is 2,000 in the default recipe, 500 in "paper", and a quarter more where `nested`.
        :meth:`partial_fit` takes one pass over its block instead.

    early_stopping : bool or "auto", default="auto"
        Stop when the validation loss has not improved for `n_iter_no_change` evaluations and keep the best weights.
        "auto" is False: the loss falls most while the learning rate decays, towards the end of the schedule. It is
        evaluated some 50 times over `max_iter`, after every step where that is below 100. Without validation rows (see
        `validation_fraction`) there is nothing to stop by.

    validation_fraction : float, default=0.05
        Share of the rows, at most 4,096 of them, held out to measure the validation loss; 0 holds out none.

    n_iter_no_change : int, default=10
        Evaluations without improvement after which early stopping stops.

    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Of the encoder's product in training and :meth:`transform`; values are fitted in float32. "bfloat16" is
        faster where the processor multiplies it natively. Where it does not but has AVX2 (x86 without AVX-512), the
        factors are rounded to 16-bit integers instead, which is faster too and ten times closer; elsewhere
        factors rounded to bfloat16 are multiplied in float32. In training, what is read of decoder, rows and gradients
        for the sums over active latents is rounded to bfloat16 too, on any processor. "tf32" has an effect on CUDA
        only. On a processor that multiplies integers or bfloat16 faster than float32, :meth:`transform` of 1,024 rows
        or more (192 by 16-bit integers) lets a product of rounded factors rule out latents that no rounding error could
        bring into a code, and computes what remains open in float32: the same codes in less time. With "bfloat16",
        where it is the integers that are faster, the rounded product decides in nearly all rows, and from 1,024 rows of
        160 features on values are fitted to a decoder rounded to 16-bit integers (x86 with AVX2): faster again, at the
        same recall (docs/research_notes_speed.md). Rows whose values rounding would change by more than some
        thousandths, those of latents that nearly coincide among them, are fitted to the decoder itself.

    sparse_output : bool, default=True
        Give codes as a SciPy CSR matrix (or array, as scikit-learn is configured); else as a dense array.

    device : str, default="auto"
        "auto" (CUDA, then MPS, then CPU) or a torch device string.

    warm_start : bool, default=False
        Continue from the fitted weights when :meth:`fit` is called again.

    random_state : int, RandomState instance or None, default=None
        Governs initialisation, the validation split and the order of batches. The same int on the same machine gives
        the same weights, bit for bit, on the CPU with the same number of threads; sums are rounded otherwise with
        another, and training carries that far.

    verbose : int, default=0
        1 shows a progress bar with loss, cosine similarity and the share of dead latents.

    checkpoint_dir : path-like or None, default=None
        Folder, made if need be, where :meth:`fit` keeps one file with the state of the training. A fit with the same
        parameters and the same X goes on from it, on the CPU and with as many threads to the very weights of a fit that
        was never cut off; a fit with others is refused, and so is one by a version that trains in another way. The file
        goes when the fit is done. It takes three times the size of the weights, four with early stopping. At most one
        fit at a time may use a folder.

    checkpoint_interval : int or "auto", default="auto"
        Optimiser steps between checkpoints; "auto" is a fiftieth of `max_iter`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features), float32
        Decoder D, rows of unit norm.
    encoder_weights_ : ndarray of shape (n_components, n_features), float32
        Encoder W; after :meth:`fit` scaled by its latents' use, where `usage_power` says so.
    encoder_bias_ : ndarray of shape (n_components,), float32
        Encoder bias b, scaled likewise.
    encoder_scale_ : ndarray of shape (n_components,), float32, or None
        Positive factors by which encoder rows and biases were scaled. ``coding="activations"`` and further training
        divide them out. None where nothing was scaled.
    has_mean_latent_ : bool
        Whether the training rows were so anisotropic (mean of the unit rows longer than 0.5) that latent 0 decodes to
        their mean direction and all others are orthogonal to it.
    scales_mean_apart_ : bool
        Whether `norm` leaves the mean's latent at the row's share of the mean and stretches the others. As
        `has_mean_latent_`, but False in models that were saved before this was so, until they are trained further.
    k_ : int
        Nonzeros per code that the model was trained with.
    latent_counts_ : ndarray of shape (n_components,), int64
        How many of the `n_rows_counted_` training rows have the latent in their code.
    latent_rms_ : ndarray of shape (n_components,), float64
        Root mean square of each latent over the same rows' codes at ``norm="unit"``; weighs the entries of
        :meth:`transform_query`.
    n_rows_counted_ : int
        Training rows (at most 100,000, drawn at random) behind the two statistics.
    dead_latents_fraction_ : float
        Share of latents that no counted row uses.
    residual_quantizer_ : ResidualQuantizer or None
        Of the residual codes; None where `residual_bytes` was None, where :meth:`fit` warned that it learned none, and
        after :meth:`partial_fit`.
    residual_norm_ : {"input", "unit", None}
        The `norm` of the codes whose residuals it was learned on.
    loss_curve_ : ndarray of shape (`n_iter_`,)
        Training loss at every step.
    validation_loss_curve_, validation_steps_ : ndarray
        Validation loss, and the steps after which it was measured.
    n_iter_ : int
        Optimiser steps taken.
    n_features_in_ : int
        Width of the input.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the input's columns, where it has names that are all strings.

    See Also
    --------
    sklearn.decomposition.PCA : Dense linear compression.
    sklearn.decomposition.MiniBatchDictionaryLearning : Sparse codes by alternating minimisation.

    References
    ----------
    .. [1] P. Kasalicky, M. Spisak, V. Vancura, D. Bohunek, R. Alves, P. Kordik, "The Future is Sparse: Embedding
       Compression for Scalable Retrieval in Recommender Systems", RecSys 2025, arXiv:2505.11388.
    .. [2] K. Engan, S. O. Aase, J. H. Husoy, "Method of Optimal Directions for Frame Design", ICASSP 1999.
    .. [3] T. Ge, K. He, Q. Ke, J. Sun, "Optimized Product Quantization", CVPR 2013.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from skcompressae import CompresSAETransformer
    >>> X, _ = make_blobs(1000, n_features=32, centers=50, random_state=0)
    >>> compressor = CompresSAETransformer(n_components=64, k=4, max_iter=100, random_state=0)
    >>> codes = compressor.fit_transform(X)
    >>> codes.shape, int(codes.nnz)
    ((1000, 64), 4000)
    >>> bool(compressor.score(X) > 0.8)
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_components": [Interval(Integral, 1, 2**31 - 1, closed="both")],  # indices of codes are int32
        "k": [Interval(Integral, 1, None, closed="left")],
        "recipe": [StrOptions(set(RECIPES))],
        "coding": [StrOptions({"auto", "pursuit", "refined_pursuit", "least_squares", "activations"})],
        "candidate_factor": [Interval(Real, 1, None, closed="left")],
        "norm": [StrOptions({"input", "unit"}), None],
        "flattening": [Interval(Real, 0, 1, closed="left"), StrOptions({"auto"})],
        "loss_weights": [tuple, list],
        "neighborhood_weight": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "usage_power": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "n_refits": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "residual_bytes": [Interval(Integral, 1, None, closed="left"), None],
        "nested": ["boolean"],
        "init": [StrOptions({"auto", "data", "kaiming"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "learning_rate_schedule": [StrOptions({"auto", "cosine", "linear", "constant"})],
        "warmup_fraction": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "early_stopping": ["boolean", StrOptions({"auto"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "precision": [StrOptions({"float32", "tf32", "bfloat16"})],
        "sparse_output": ["boolean"],
        "device": [str],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "checkpoint_dir": [str, os.PathLike, None],
        "checkpoint_interval": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(
        self,
        n_components: int = 4096,
        *,
        k: int = 32,
        recipe: str = "default",
        coding: str = "auto",
        candidate_factor: float = 2.0,
        norm: str | None = "input",
        flattening: float | str = "auto",
        loss_weights: tuple[float, float] = (1.0, 0.125),
        neighborhood_weight: float | str = "auto",
        usage_power: float | str = "auto",
        n_refits: int | str = "auto",
        residual_bytes: int | None = None,
        nested: bool = False,
        init: str = "auto",
        learning_rate: float | str = "auto",
        learning_rate_schedule: str = "auto",
        warmup_fraction: float | str = "auto",
        batch_size: int | str = "auto",
        max_iter: int | str = "auto",
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.05,
        n_iter_no_change: int = 10,
        precision: str = "float32",
        sparse_output: bool = True,
        device: str = "auto",
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_interval: int | str = "auto",
    ) -> None:
        self.n_components = n_components
        self.k = k
        self.recipe = recipe
        self.coding = coding
        self.candidate_factor = candidate_factor
        self.norm = norm
        self.flattening = flattening
        self.loss_weights = loss_weights
        self.neighborhood_weight = neighborhood_weight
        self.usage_power = usage_power
        self.n_refits = n_refits
        self.residual_bytes = residual_bytes
        self.nested = nested
        self.init = init
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.warmup_fraction = warmup_fraction
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.precision = precision
        self.sparse_output = sparse_output
        self.device = device
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval

    def __setstate__(self, state: dict[str, Any]) -> None:
        # pickles that know none are of models whose codes were as fitted, and whose decoder as trained
        super().__setstate__({"flattening": 0.0, "n_refits": "auto", "residual_bytes": None, **state})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
