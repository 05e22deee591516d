# SPDX-License-Identifier: Apache-2.0
# For services.matrix-synapse.plugins:
#   (pkgs.matrix-synapse.python.pkgs.callPackage ./package.nix { })
{
  buildPythonPackage,
  hatchling,
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
  pyproject = true;
  # The checkout that this file is in.
  src = ../..;

  build-system = [ hatchling ];
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

  # They need real servers, and a network.
  doCheck = false;
  pythonImportsCheck = [ "synapse_federation_admin" ];
}
