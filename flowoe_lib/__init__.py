"""FlowOE: optimal execution by a refined flow-matching policy, from bars to scorecard."""
