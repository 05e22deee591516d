# SPDX-License-Identifier: Apache-2.0
# For services.matrix-synapse.plugins, with the wheel beside this file:
#   (pkgs.matrix-synapse-unwrapped.python.pkgs.callPackage ./package.nix { })
{
  buildPythonPackage,
  matrix-synapse-unwrapped,
  attrs,
  jinja2,
  pydantic,
  twisted,
  typing-extensions,
}:

buildPythonPackage {
  pname = "synapse-federation-admin";
  version = "0.1.0";
  format = "wheel";
  src = ./synapse_federation_admin-0.1.0-py3-none-any.whl;

  # Synapse's environment holds the plugin, and not the other way round.
  buildInputs = [ matrix-synapse-unwrapped ];
  dependencies = [
    attrs
    jinja2
    pydantic
    twisted
    typing-extensions
  ];
  pythonRemoveDeps = [ "matrix-synapse" ];

  pythonImportsCheck = [ "synapse_federation_admin" ];
}
