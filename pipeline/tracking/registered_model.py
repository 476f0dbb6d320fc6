"""The trained GHN as MLflow loads it.

MLflow runs this file ("models from code") with the checkpoint folder beside it, so that nothing is pickled:

    model = mlflow.pyfunc.load_model("models:/ghn/1")
    (parameters,) = model.predict([architecture.to_dict()])
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from ghn import GHN, network_from_dict

Record = dict[str, str | int | float | bool | dict[str, Any] | None]

# At each load MLflow would warn that it does not check the values of such a record: `network_from_dict` does.
logging.getLogger("mlflow.types.type_hints").setLevel(logging.ERROR)


class ParameterPredictor(PythonModel):
    """Model that predicts all parameters of networks."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint."""
        self.ghn = GHN.from_pretrained(context.artifacts["checkpoint"])

    # The result, a list of dictionaries of arrays, is a type that MLflow cannot express. `params` are not used.
    def predict(self, context: PythonModelContext, model_input: list[Record]):  # type: ignore[override]
        """Return the parameters of the network of each record of `to_dict`: name -> float32 array of their shape.

        The networks are for the image size and the number of classes that the GHN was trained with.
        """
        networks = [network_from_dict(record) for record in model_input]
        with torch.inference_mode():
            predicted = self.ghn.predict_parameters(networks)
        return [
            {name: tensor.float().numpy(force=True) for name, tensor in parameters.items()} for parameters in predicted
        ]


set_model(ParameterPredictor())
